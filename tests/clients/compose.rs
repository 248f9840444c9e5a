//! `infra/compose.yaml`, by Docker's compose: three replicas behind nginx, with Redis and an S3 server.
//!
//! No image is pulled. Those that the file names are made here, of the programs that this machine has.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command};

use crate::{
    berth::{free_port, run},
    docker_daemon::Daemon,
    tool::{Timed, Tool, find},
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/infra/compose.yaml");

/// What nginx's own image has around the file that is mounted into it.
const NGINX: &str = "events {}\nhttp {\n    access_log off;\n    include /etc/nginx/conf.d/*.conf;\n}\n";

/// An image of these programs and the libraries that they are linked to.
fn make_image(daemon: &Daemon, name: &str, entrypoint: &str, programs: &[&str]) {
    let context = daemon.path(name.split(['/', ':']).next().unwrap());
    let root = context.join("root");
    for directory in ["etc/nginx", "run", "tmp", "usr/share/nginx", "var/lib/nginx", "var/log/nginx"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    for program in programs {
        let program = find(program).unwrap_or_else(|| panic!("{program} is missing: scripts/setup-tests installs it"));
        put(&program, &root.join("usr/local/bin"));
        // Of a program that is linked to nothing it says so, and fails.
        let linked = Command::new("ldd").arg(&program).output().unwrap().stdout;
        for library in String::from_utf8(linked).unwrap().split_whitespace().filter(|word| word.starts_with('/')) {
            let library = Path::new(library);
            put(library, &root.join(library.parent().unwrap().strip_prefix("/").unwrap()));
        }
    }
    fs::write(root.join("etc/nginx/nginx.conf"), NGINX).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:\nnobody:x:65534:65534::/:\n").unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n").unwrap();
    let dockerfile = format!("FROM scratch\nCOPY root/ /\nENV PATH=/usr/local/bin\nENTRYPOINT {entrypoint}\n");
    fs::write(context.join("Dockerfile"), dockerfile).unwrap();
    daemon.run(&["build", "--tag", name, context.to_str().unwrap()]);
}

/// Copies a file into a directory.
fn put(file: &Path, directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    fs::copy(file, directory.join(file.file_name().unwrap())).unwrap();
}

/// The name that the file gives to an image that begins so.
fn image(name: &str) -> String {
    let file = fs::read_to_string(FILE).unwrap();
    let line =
        file.lines().find_map(|line| line.trim().strip_prefix("image: ").filter(|image| image.starts_with(name)));
    line.unwrap_or_else(|| panic!("no image {name} in {FILE}")).to_owned()
}

#[test]
fn compose_runs_three_replicas_behind_nginx() {
    let (_timed, daemon) = (Timed::client("docker-compose"), Daemon::with_network());
    daemon.build_berth();
    make_image(&daemon, &image("nginx"), "[]", &["nginx"]);
    make_image(&daemon, &image("redis"), "[]", &["redis-server", "redis-cli"]);
    make_image(&daemon, &image("versity"), "[\"versitygw\"]", &["versitygw", "wget"]);
    let (tool, port) = (Tool::new("docker-compose"), free_port().to_string());
    let compose = |arguments: &[&str]| {
        let mut command = tool.command(&[&["--file", FILE], arguments].concat());
        run(command.env("DOCKER_HOST", daemon.socket()).env("PORT", &port))
    };
    compose(&["up", "--detach", "--pull", "never"]);

    let reference = format!("127.0.0.1:{port}/team/app:1");
    daemon.import(&reference, 100_000);
    daemon.run(&["push", &reference]);
    daemon.pull_again(&reference);
    for number in 1..=3 {
        let replica = format!("berth-berth-{number}");
        assert!(daemon.run(&["exec", &replica, "/usr/bin/berth", "health"]).contains("ready"), "{replica}");
    }
    compose(&["down", "--volumes"]);
}
