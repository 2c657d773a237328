"""What makes a step fast. COMPILE=False turns all of it off, and is its reference in the tests.

- ``mlp``: losses and gradients of the built-in MLP in closed form, in place of vmap and autograd;
- ``kernels``: on a GPU the same for narrow MLPs, and SGD, in a launch each (``triton_kernels``);
- ``compile``: those of custom models through torch.compile;
- ``replay``: on a GPU, the whole step as a CUDA graph, recorded by ``cuda_graph``.
"""
