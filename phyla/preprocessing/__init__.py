"""Text, images, audio and layout to tensors; importing this package loads neither torch nor numpy."""
