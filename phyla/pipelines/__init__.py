"""Whole jobs on text, images and sound; one file for each task."""
