from runs import demo_data, resumed, uninterrupted

__all__ = ["demo_data", "resumed", "uninterrupted"]
