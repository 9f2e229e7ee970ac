"""Images as pixels: files opened, pictures cut into views. NumPy and Pillow alone, so that any engine can see."""
