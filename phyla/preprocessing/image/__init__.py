"""Pictures and videos to pixel values, and model outputs back to boxes, masks, depth and keypoints."""
