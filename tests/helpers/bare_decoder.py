"""A decoder on a kernel that confines nothing."""

from pipelines.media import decoder_child, sandbox

if __name__ == "__main__":
    sandbox.available = lambda: sandbox.Confinement(seccomp=False, landlock=0)
    decoder_child.main()
