"""What runs a model: torch, onnxruntime, OpenVINO."""
