"""From the bytes of an image or video to frames."""
