"""Proofs that the loss along a string is low everywhere, and a checker that shares nothing with
them."""
