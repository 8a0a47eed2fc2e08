"""mixpo"""
