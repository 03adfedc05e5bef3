"""The kernels in readable Python: the specification that `_native` is tested against."""
