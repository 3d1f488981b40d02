"""The core: sessions on a proven provider, their settings and their tensors."""
