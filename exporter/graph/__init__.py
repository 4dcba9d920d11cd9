"""The ONNX graph of a CircuitModel."""
