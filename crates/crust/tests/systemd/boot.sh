# Boots systemd as PID 1 of fresh namespaces, over an overlay of / with its own /run, /tmp, /var/tmp, /dev and cgroups.
# Arguments: an empty directory; what to copy over the new root. Prints the pid of PID 1's parent, then waits until its
# standard input ends, and ends everything. Runs in a mount namespace of its own.
set -eu
dir=$1 stage=$2
refuse() { echo "refused: $*"; exit 3; }
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$dir" || refuse "no tmpfs can be mounted"
mkdir "$dir/cgroup" "$dir/up" "$dir/work" "$dir/root"
mount -t cgroup2 cgroup2 "$dir/cgroup" || refuse "no cgroup2 hierarchy"
cgroup=$dir/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/crust-test-$$
mkdir "$cgroup" || refuse "no cgroup can be made"
mount -t overlay -o "lowerdir=/,upperdir=$dir/up,workdir=$dir/work" overlay "$dir/root" || refuse "no overlay of /"

cat >"$dir/init.sh" <<'INIT'
set -eu
cd "$1/root"
mount -t proc proc proc
# What is not of these namespaces stays as it is: nothing below writes the machine's settings.
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
for place in run tmp var/tmp dev etc/systemd/system; do mount -t tmpfs -o mode=755 tmpfs $place; done
chmod 1777 tmp var/tmp
for node in null zero full random urandom tty; do : >dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
# Not the first boot, which would enable what the host has installed.
echo 0123456789abcdef0123456789abcdef >etc/machine-id
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n' >etc/systemd/system/crust-test.target
mkdir old
pivot_root . old
cd /
umount -l old
rmdir old
exec env -i container=crust-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=crust-test.target --show-status=no --log-target=journal-or-kmsg
INIT

cp -a "$stage/." "$dir/root/"
exec 3<&0
sh -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' sh "$cgroup" \
    unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup sh "$dir/init.sh" "$dir" </dev/null 3<&- &
child=$!
echo "parent $child"
read -r _ <&3 || true
kill -KILL $child || true
wait $child || true
# The namespace's processes are gone once its first is; their cgroups can be removed a little later.
tries=0
while [ -d "$cgroup" ] && [ $tries -lt 600 ]; do
    find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.1
    tries=$((tries + 1))
done
[ ! -d "$cgroup" ] || echo "left: $cgroup"
echo "ended"
