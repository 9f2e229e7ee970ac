"""Screens: scenes of tickets, boards, lists, forms, chats and charts with questions whose answers are to be read."""
