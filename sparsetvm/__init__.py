"""sparsetvm"""
