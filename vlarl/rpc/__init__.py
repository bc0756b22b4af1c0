"""gRPC as this project uses it: servers, channels, errors, authentication, metrics."""
