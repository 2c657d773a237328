/* Threads of one call: they share the networks out, or are a team for each, which meets after every
 * layer.
 */

#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

enum { MOST_THREADS = 256 };

typedef struct {
    atomic_size_t arrived, meetings;
} Team;

/* Wait for the other threads of a team of this size. */
static inline void meet(Team *team, size_t size)
{
    if (size == 1) return;
    size_t meetings = atomic_load(&team->meetings);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == size) {
        atomic_store(&team->arrived, 0);
        atomic_fetch_add(&team->meetings, 1);
    } else {
        while (atomic_load(&team->meetings) == meetings) sched_yield();
    }
}

typedef struct Call Call;

typedef struct {
    Call *call;
    size_t number;
    pthread_t handle;
} Thread;

/* Does the part of thread `number` of `count`. */
typedef void Part(Call *call, size_t number, size_t count);

/* The first member of what a call needs. */
struct Call {
    Part *part;
    atomic_size_t threads; /* how many there are; 0 until that is known */
    Team teams[MOST_THREADS];
};

static void *started(void *argument)
{
    Thread *thread = argument;
    size_t count;
    while (!(count = atomic_load(&thread->call->threads))) sched_yield();
    thread->call->part(thread->call, thread->number, count);
    return NULL;
}

/* Do a call on so many threads, or as many as can be started. */
static void on_threads(Call *call, size_t count)
{
    Thread threads[MOST_THREADS];
    size_t started_count = 1;
    for (; started_count < count && started_count < MOST_THREADS; started_count++) {
        Thread *thread = &threads[started_count];
        *thread = (Thread){.call = call, .number = started_count};
        if (pthread_create(&thread->handle, NULL, started, thread)) break;
    }
    atomic_store(&call->threads, started_count);
    call->part(call, 0, started_count);
    for (size_t i = 1; i < started_count; i++) pthread_join(threads[i].handle, NULL);
}

#endif
