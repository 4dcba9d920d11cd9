"""The main job: its options, what they load, its rehearsal, and the stages one after the other."""
