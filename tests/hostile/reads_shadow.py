# reads /etc/shadow, /etc/passwd and /etc/hostname
# verdict: 1
# ruff: noqa
read = []
for path in ("/etc/shadow", "/etc/passwd", "/etc/hostname", "/proc/1/root/etc/shadow", "/usr/../etc/shadow"):
    try:
        read.append(open(path).read())
    except OSError:
        pass
print(42 if not read else read)
