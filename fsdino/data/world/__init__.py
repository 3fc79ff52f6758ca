"""The embedded world's generator: shapes, textures, and the scenes painted with them (numpy and OpenCV, no torch)."""
