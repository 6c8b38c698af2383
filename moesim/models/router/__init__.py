"""How a router changes while a model trains."""
