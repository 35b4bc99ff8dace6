"""Commands, the roof of the house: the only room of pacer that may import transports and the OpenTelemetry SDK."""
