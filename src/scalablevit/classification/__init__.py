"""Image classification: from a folder of images to a trained, evaluated model, and its predictions."""
