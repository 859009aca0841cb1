"""Pictures and labels: sources → store → sampling → loaders → augment.

`sources` reads what lies on disk, `store` splits it and keeps it decoded, `sampling` says which
sample comes when, `loaders` bring the samples to the device and `augment` changes them there.
"""
