"""The product `segments`: what segmentation and detection models find."""
