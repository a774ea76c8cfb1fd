"""Reads a student folder, writes `onnx/` into it; makes asymmetric packages of it, and publishes either.

`graph` traces, `quantize` makes it smaller, `onnx` compares and keeps; `asymmetric` and `publish` stand beside them.
"""
