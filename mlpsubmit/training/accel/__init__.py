"""What makes a step fast. COMPILE=False turns all of it off, and is its reference in the tests.

- ``mlp``: losses and gradients of MLPs in closed form, in place of vmap and autograd;
- ``chains``: which models that are;
- ``native_mlp``: on a CPU the same by functions in C (``mlpsubmit.native``);
- ``layer_products``: their products, on a GPU fused with what follows;
- ``narrow_mlps``: on a GPU the same for narrow MLPs, in one launch;
- ``step_kernels``: SGD, Adam on a CPU, and the smoothing of losses, in a call each;
- ``kernels``: where kernels run on a GPU (``triton_kernels``), and the trial of each;
- ``mlp_trial``: that of kernels for MLPs;
- ``compile``: those of custom models through torch.compile;
- ``replay``: on a GPU, the whole step as a CUDA graph, recorded by ``cuda_graph``.
"""
