/* The peak of one core in single precision: fused multiply-adds of registers, as GFLOP/s.
 *
 *     cc -O2 -march=native peak.c && ./a.out [SECONDS]
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

typedef float vector __attribute__((vector_size(BYTES)));

/* As many as hide the latency of two units, and no more than there are registers. */
enum { SUMS = 12, LANES = BYTES / 4 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void chunk(vector *s, long count, vector a, vector b) {
    vector s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3], s4 = s[4], s5 = s[5];
    vector s6 = s[6], s7 = s[7], s8 = s[8], s9 = s[9], s10 = s[10], s11 = s[11];
    for (long i = 0; i < count; i++) {
        s0 = s0 * a + b; s1 = s1 * a + b; s2 = s2 * a + b; s3 = s3 * a + b;
        s4 = s4 * a + b; s5 = s5 * a + b; s6 = s6 * a + b; s7 = s7 * a + b;
        s8 = s8 * a + b; s9 = s9 * a + b; s10 = s10 * a + b; s11 = s11 * a + b;
    }
    s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3, s[4] = s4, s[5] = s5;
    s[6] = s6, s[7] = s7, s[8] = s8, s[9] = s9, s[10] = s10, s[11] = s11;
}

int main(int argc, char **argv) {
    double seconds = argc > 1 ? atof(argv[1]) : 0.3, begun = now(), used;
    long count = 1000000, done = 0;
    volatile float a = 0.5f, b = 0.25f, kept;
    vector A, B, sums[SUMS];
    for (int i = 0; i < LANES; i++) { A[i] = a; B[i] = b; }
    for (int j = 0; j < SUMS; j++) { sums[j] = A * (float)j; } /* else they would be one sum */
    do {
        chunk(sums, count, A, B);
        for (int j = 0; j < SUMS; j++) { kept = sums[j][0]; }
        done += count;
        used = now() - begun;
    } while (used < seconds);
    (void)kept;
    printf("%.2f\n", 2.0 * SUMS * LANES * done / used / 1e9);
    return 0;
}
