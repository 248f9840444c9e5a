//! The container image, built as `make image` builds it and run as docs/container.md says.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command, thread, time::Duration};

use crate::{
    berth::{Berth, fails, free_port, run},
    docker_daemon::Daemon,
};

fn page(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The command of docs/container.md that begins so, on `port`, in the background, and looked after every moment.
fn documented(begin: &str, port: u16) -> Vec<String> {
    let page = page("docs/container.md").replace("\\\n", " ");
    let command = page.lines().find(|line| line.starts_with(begin)).expect("a command of that page");
    let command = command.replace("-p 5000:5000", &format!("-p 127.0.0.1:{port}:5000"));
    let mut words: Vec<String> = command.split_whitespace().skip(1).map(str::to_owned).collect();
    words.splice(1..1, ["--detach", "--health-interval", "100ms"].map(str::to_owned));
    words
}

/// Starts a container, and waits until it says that it is healthy.
fn start(daemon: &Daemon, arguments: &[String]) -> String {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let id = daemon.run(&arguments).trim().to_owned();
    loop {
        let state = daemon.run(&["inspect", "--format", "{{.State.Status}} {{.State.Health.Status}}", &id]);
        match state.trim() {
            "running healthy" => return id,
            "running starting" => thread::sleep(Duration::from_millis(50)),
            other => panic!("{other}: {}", daemon.run(&["logs", &id])),
        }
    }
}

#[test]
fn the_image_runs_as_documented() {
    let daemon = Daemon::with_network();
    daemon.build_berth();
    let facts = daemon.run(&["inspect", "--format", "{{.Config.User}} {{json .Config.Labels}}", "berth"]);
    assert!(facts.starts_with("65532:65532 ") && facts.contains("image.revision\":\"abc\""), "{facts}");
    println!(
        "the image, of a debug build: {} bytes",
        daemon.run(&["inspect", "--format", "{{.Size}}", "berth"]).trim()
    );

    // It listens where others can reach it, so somebody has to say who may come in.
    let said = fails(&mut daemon.docker(&["run", "--rm", "berth"]));
    assert!(said.contains("server.listen") && said.contains("auth.anonymous"), "{said}");

    let quick = free_port();
    let id = start(&daemon, &documented("docker run -p 5000:5000 -e BERTH_AUTH__ANONYMOUS=writer berth", quick));
    let image = format!("127.0.0.1:{quick}/team/app:1");
    daemon.import(&image, 100_000);
    daemon.run(&["push", &image]);
    daemon.pull_again(&image);
    daemon.run(&["stop", &id]);
    let ended = daemon.run(&["inspect", "--format", "{{.State.ExitCode}}", &id]);
    assert_eq!(ended.trim(), "0", "{}", daemon.run(&["logs", &id]));

    // What is in the volume outlives the container, and nothing is written elsewhere.
    let kept = free_port();
    let command = documented("docker run -d --name registry", kept);
    start(&daemon, &command);
    let image = format!("127.0.0.1:{kept}/team/app:1");
    daemon.import(&image, 100_000);
    daemon.run(&["push", &image]);
    daemon.run(&["rm", "--force", "registry"]);
    start(&daemon, &command);
    daemon.pull_again(&image);
}

#[test]
fn health_is_what_the_server_says() {
    let mut berth = Berth::start();
    let admin = berth.admin().to_string();
    let health = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.arg("health").env("BERTH_ADMIN__LISTEN", &admin);
        command
    };
    assert!(run(&mut health()).contains("ready"));
    berth.kill9();
    let said = fails(&mut health());
    assert!(said.contains(&admin) && said.contains("doesn't answer"), "{said}");
}

#[test]
fn the_page_shows_the_balancer_as_it_is_tested() {
    let (file, page) = (page("infra/nginx.conf"), page("docs/replicas.md"));
    let shown = page.split("```nginx\n").nth(1).unwrap().split("```").next().unwrap();
    let without_addresses = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.trim_start().starts_with("server ") || line.contains('{'))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(without_addresses(shown), without_addresses(&file));
}
