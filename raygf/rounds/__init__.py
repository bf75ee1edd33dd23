"""The round loop, and what makes one round: independent exits and their fusion, or one joint epoch."""
