"""The commands of token-pacer: the roof of the house, which may know the transports and the OpenTelemetry SDK."""
