"""mapbridge: change data capture and replication of eBPF maps over NATS JetStream."""

__version__ = "0.1.0"
