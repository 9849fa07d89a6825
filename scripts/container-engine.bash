# Sourced by scripts/test-compose: finds or sets up a container engine, and a base image where none can be pulled.
#
# Expects `cache` (a directory that is kept), `work` (one that is not), `say` and `skip`; gives `docker` (the client to call),
# BASE_IMAGE, and `stop_own_daemon`, to be called at the end where `own_daemon` is set.
# shellcheck shell=bash disable=SC2154

docker=docker
own_daemon=

# FUNCTION FILE REASON: runs the function up to its first failing command with its output in the file; skips with the reason.
attempt() {
    local code
    set +e
    (
        set -e
        "$1"
    ) >"$2" 2>&1
    code=$?
    set -e
    ((code == 0)) || skip "$3, see $2"
}

engine_answers() { "$docker" info >/dev/null 2>&1 && "$docker" compose version >/dev/null 2>&1; }

set_up_engine() {
    if engine_answers; then
        say "using the container engine that answers ($("$docker" version --format '{{.Server.Version}}'))"
        return
    fi
    ((EUID == 0)) || skip "no container engine with compose answers, and setting one up needs root"
    command -v apt-get >/dev/null && [[ -r /etc/debian_version ]] || skip "no container engine with compose answers, and this is not Debian"
    pgrep -x dockerd >/dev/null && skip "a docker daemon runs already, but does not answer or has no compose"
    [[ ! -e /sys/class/net/docker0 ]] || skip "another docker daemon has left its network docker0"
    attempt install_packages "$cache/install.log" "the container engine's packages cannot be installed"
    docker=/usr/bin/docker # another client may come first on the PATH, without compose
    export DOCKER_HOST=unix://$cache/docker.sock DOCKER_CONFIG=$cache/config
    remember_network
    setsid dockerd --data-root "$cache/data" --exec-root "$work/exec" --host "$DOCKER_HOST" --pidfile "$work/dockerd.pid" \
        >"$cache/dockerd.log" 2>&1 &
    own_daemon=$!
    for _ in $(seq 120); do
        engine_answers && break
        kill -0 "$own_daemon" 2>/dev/null || skip "the docker daemon does not start here, see $cache/dockerd.log"
        sleep 0.25
    done
    engine_answers || skip "the docker daemon does not answer, see $cache/dockerd.log"
    say "started a container engine of our own ($("$docker" version --format '{{.Server.Version}}'))"
}

install_packages() {
    if [[ ! -x /usr/sbin/dockerd || ! -x /usr/bin/docker || ! -x /usr/sbin/debootstrap ]] || ! command -v iptables; then
        apt-get update --quiet
        apt-get install --yes --quiet --no-install-recommends docker.io debootstrap iptables
    fi
    [[ -x $cache/config/cli-plugins/docker-compose ]] || install_plugins
}

# Compose 2 and buildx are single programs; Debian has them as packages from trixie on, and they run on older releases too.
install_plugins() {
    local apt=$cache/apt keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$apt"/{lists/partial,archives/partial,packages} "$cache/config/cli-plugins"
    echo "deb [signed-by=$keyring] $(debian_mirror) trixie main" >"$apt/sources.list"
    local options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists"
        -o "Dir::Cache=$apt" -o APT::Sandbox::User=root)
    apt-get "${options[@]}" update --quiet
    (cd "$apt/packages" && apt-get "${options[@]}" download docker-compose docker-buildx)
    for package in "$apt"/packages/*.deb; do
        dpkg-deb --extract "$package" "$apt/unpacked"
    done
    install --mode 755 "$apt"/unpacked/usr/libexec/docker/cli-plugins/docker-* "$cache/config/cli-plugins/"
    rm -rf "$apt"
}

debian_mirror() {
    local mirror
    mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | awk '/^URIs:/ { print $2; exit }')
    [[ -n $mirror ]] || mirror=$(awk '$1 == "deb" { for (i = 2; i <= NF; i++) if ($i ~ /^http/) { print $i; exit } }' /etc/apt/sources.list)
    echo "$mirror"
}

# A daemon leaves its network, its firewall rules and a FORWARD policy of DROP behind when it ends.
remember_network() {
    forwarding=$(</proc/sys/net/ipv4/ip_forward)
    for table in filter nat; do
        iptables-save --table "$table" >"$work/$table.rules"
    done
}

stop_own_daemon() {
    "$docker" image prune --force >/dev/null 2>&1 || true
    "$docker" builder prune --force --keep-storage 12GB >/dev/null 2>&1 || true
    kill "$own_daemon" 2>/dev/null || true
    wait "$own_daemon" || true
    ip link delete docker0 2>/dev/null || true
    for table in filter nat; do
        iptables-restore --table "$table" <"$work/$table.rules" || true
    done
    echo "$forwarding" >/proc/sys/net/ipv4/ip_forward
}

choose_base_image() {
    local public=python:3.12-slim-bookworm
    if [[ -n ${BASE_IMAGE:-} ]]; then
        say "base image: $BASE_IMAGE, as asked"
    elif "$docker" image inspect "$public" >/dev/null 2>&1 || timeout 300 "$docker" pull --quiet "$public" >/dev/null 2>&1; then
        export BASE_IMAGE=$public
        say "base image: $public"
    elif [[ -x /usr/sbin/debootstrap ]] && ((EUID == 0)); then
        attempt make_base_image "$cache/base.log" "no base image can be pulled or made"
        if compgen -G "$work/base/wheels/torch-*+cpu-*.whl" >/dev/null; then
            export TORCH_INDEX_URL="" # pip finds the build for CPUs among these wheels
        fi
        export BASE_IMAGE=penstock-test-base
        say "base image: made of Debian packages, as none can be pulled"
    else
        skip "no base image can be pulled; name one with BASE_IMAGE"
    fi
}

# Debian's Python; on top of it what this machine adds to reach a package index: its certificates and pip's local wheels.
make_base_image() {
    if [[ ! -s $cache/base.tar ]]; then
        debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip \
            bookworm "$work/root" "$(debian_mirror)"
        tar --create --directory "$work/root" --one-file-system --exclude='./proc/*' --exclude='./sys/*' --exclude='./dev/*' \
            --exclude='./var/cache/apt/archives/*.deb' --exclude='./var/lib/apt/lists/*' --file "$cache/base.tar.part" .
        mv "$cache/base.tar.part" "$cache/base.tar"
        rm -rf --one-file-system "$work/root"
    fi
    "$docker" image inspect penstock-test-debian || "$docker" import "$cache/base.tar" penstock-test-debian
    mkdir -p "$work/base/wheels"
    local directory
    for directory in $(python3 -m pip config get global.find-links 2>/dev/null) ${PIP_FIND_LINKS:-}; do
        directory=${directory#file://}
        [[ ! -d $directory ]] || cp --update "$directory"/*.whl "$work/base/wheels/"
    done
    cp --dereference "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$work/base/ca-certificates.crt"
    find "$work/base" -exec touch --date=@0 {} +
    cat >"$work/base/Dockerfile" <<'END'
FROM penstock-test-debian
COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY wheels /opt/wheels
RUN printf '[global]\nfind-links = /opt/wheels\n' >/etc/pip.conf
ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DEFAULT_TIMEOUT=180
END
    DOCKER_BUILDKIT=1 "$docker" build --tag penstock-test-base "$work/base"
}
