"""The page of `maskcls-demo`: a fused ONNX file in a browser, with nothing behind it but files."""
