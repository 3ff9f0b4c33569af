"""Secure aggregation: the coordinator learns a sum of updates and nothing else.

Double masking after Bonawitz et al. (CCS 2017) and Bell et al. (CCS 2020), with share keepers apart from mask
neighbours after Flamingo (Ma et al., S&P 2023). Pure state machines: no socket, no clock, no file.
"""
