"""The engine: a few compiled verbs over a few fixed shapes, and the object that owns them."""
