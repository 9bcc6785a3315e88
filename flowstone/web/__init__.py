"""Pages and addresses over HTTP."""
