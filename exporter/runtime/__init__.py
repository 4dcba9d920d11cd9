"""ONNX Runtime: sessions, decoding, text in and out."""
