"""itlib"""
