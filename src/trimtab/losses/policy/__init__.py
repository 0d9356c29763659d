"""Policy losses, one file a method; the folder is the registry."""
