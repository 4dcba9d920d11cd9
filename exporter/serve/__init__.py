"""Serve a bundle over HTTP: a small service around one ONNX Runtime session (docs/serving.md)."""
