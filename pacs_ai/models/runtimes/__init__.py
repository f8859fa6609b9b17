"""What runs models that others made: MONAI bundles, nnU-Net folders, ONNX files."""
