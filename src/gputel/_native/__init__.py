"""The kernels in Cython; `gputel.kernels` is the only door to them."""
