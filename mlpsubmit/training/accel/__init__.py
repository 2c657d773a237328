"""What makes a step fast. COMPILE=False turns all of it off, and is its reference in the tests.

- ``mlp``: losses and gradients of the built-in MLP in closed form, in place of vmap and autograd;
- ``layer_products``: their products, on a GPU fused with what follows;
- ``narrow_mlps``: on a GPU the same for narrow MLPs, in one launch;
- ``step_kernels``: on a GPU SGD, and the smoothing of losses, in a launch each;
- ``kernels``: where these kernels run (``triton_kernels``), and their trial;
- ``compile``: those of custom models through torch.compile;
- ``replay``: on a GPU, the whole step as a CUDA graph, recorded by ``cuda_graph``.
"""
