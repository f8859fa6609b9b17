"""What people look at: pages, pictures and overlays."""
