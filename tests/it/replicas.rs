//! Three replicas over one bucket and one Redis, behind nginx as docs/replicas.md sets it up: round robin, so
//! that hardly two requests of a client reach the same one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    berth::{Berth, Setup, free_port, own_address},
    docker_daemon::Daemon,
    e2e_client::{Client, closing, noise, sha256},
    e2e_tools::Tool,
    redis_server::{self, RedisServer},
    s3_server::{self, S3Server},
};

/// A balancer; it ends when this is dropped.
struct Nginx {
    port: u16,
    child: Child,
    _directory: TempDir,
}

impl Nginx {
    /// With the configuration of docs/replicas.md, but for the addresses.
    fn start(replicas: &[String]) -> Self {
        let (directory, port) = (TempDir::new().unwrap(), free_port());
        let servers: String =
            replicas.iter().map(|replica| format!("    server {replica} fail_timeout=1s;\n")).collect();
        let site = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("infra/nginx.conf")).unwrap();
        let site = site.replace("    server berth:5000 fail_timeout=1s;\n", &servers);
        let site = site.replace("listen 5000;", &format!("listen 127.0.0.1:{port};"));
        let own = directory.path().display();
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary.map(|name| format!("    {name}_temp_path {own}/{name};\n")).concat();
        // One worker, so that the round is one.
        let whole = format!(
            "worker_processes 1;\ndaemon off;\npid {own}/pid;\nerror_log {own}/log;\nevents {{}}\n\
             http {{\n    access_log off;\n{temporary}{site}}}\n"
        );
        let config = directory.path().join("nginx.conf");
        fs::write(&config, whole).unwrap();
        let log = directory.path().join("log");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory.path()).arg("-e").arg(&log).arg("-c").arg(&config).stdin(Stdio::null());
        let mut child = command.spawn().expect("nginx is needed: scripts/setup-tests installs it");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "nginx ended: {}", fs::read_to_string(&log).unwrap_or_default());
            thread::sleep(Duration::from_millis(10));
        }
        Self { port, child, _directory: directory }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended by itself.
        kill_process(Pid::from_child(&self.child), Signal::TERM).ok();
        self.child.wait().unwrap();
    }
}

/// Replicas, what they share, and what is before them.
struct Cluster {
    nginx: Nginx,
    replicas: Vec<Berth>,
    _servers: (S3Server, RedisServer),
}

impl Cluster {
    async fn start() -> Self {
        let (s3, redis) = (s3_server::start().await, redis_server::start().await);
        let replica = || {
            // An address that it has again after a restart.
            let listen = format!("{}:5000", own_address());
            let own = [("BERTH_INDEX__URL", redis.url()), ("BERTH_SERVER__LISTEN", listen)];
            let settings = [&s3.settings()[..], &own].concat();
            let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
            Setup::of(&settings).start()
        };
        // All at once, as an orchestrator does it, on a bucket that holds nothing yet.
        let replicas: Vec<Berth> = thread::scope(|scope| {
            let starting = [(); 3].map(|()| scope.spawn(replica));
            starting.map(|replica| replica.join().unwrap()).into()
        });
        let nginx = Nginx::start(&replicas.iter().map(Berth::host).collect::<Vec<_>>());
        Self { nginx, replicas, _servers: (s3, redis) }
    }

    /// `127.0.0.1:<port>` of the balancer.
    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.nginx.port)
    }

    fn client(&self) -> Client {
        Client::remote(&format!("http://{}", self.host()))
    }

    /// Fails unless some upload was taken on by one replica after another.
    #[track_caller]
    fn assert_spread(&self) {
        let mut takers: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for (number, replica) in self.replicas.iter().enumerate() {
            for path in replica.log().lines().filter_map(path_of) {
                if let Some((_, upload)) = path.split_once("/blobs/uploads/").filter(|(_, id)| !id.is_empty()) {
                    takers.entry(upload.split('?').next().unwrap().to_owned()).or_default().insert(number);
                }
            }
        }
        println!("{} uploads; by how many replicas each: {:?}", takers.len(), takers.values().map(BTreeSet::len));
        assert!(takers.values().any(|takers| takers.len() > 1), "{takers:?}");
    }
}

/// The path of a request that left this line in the log.
fn path_of(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let fields = if line["fields"].is_object() { &line["fields"] } else { &line };
    fields["path"].as_str().map(str::to_owned)
}

/// Each request goes to the replica after the one before it, and each replica then tells the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_goes_from_one_replica_to_the_next() {
    let cluster = Cluster::start().await;
    let clients: Vec<Client> = cluster.replicas.iter().map(Berth::client).collect();
    let mut turn = clients.iter().cycle();
    // Below and above the size of a part, and with a last piece that comes with the closing request.
    for (seed, chunks, tail) in [(1, vec![10, 20], 5), (2, vec![9 << 20, 9 << 20, 100], 0), (3, vec![17 << 20], 1)] {
        let bytes = noise(seed, chunks.iter().sum::<usize>() + tail);
        let mut location = turn.next().unwrap().start_upload("team/app").await;
        let mut at = 0;
        for size in chunks {
            let range = format!("{at}-{}", at + size - 1);
            let chunk = bytes.slice(at..at + size);
            let answer = turn.next().unwrap().send("PATCH", &location, &[("content-range", &range)], chunk).await;
            location = answer.expect(202).location();
            at += size;
            let stands = turn.next().unwrap().get(location.split('?').next().unwrap()).await.expect(204);
            assert_eq!(stands.header("range"), format!("0-{}", at - 1));
        }
        let digest = sha256(&bytes);
        let close = closing(&location, &digest);
        turn.next().unwrap().send("PUT", &close, &[], bytes.slice(at..)).await.expect(201);
        for client in &clients {
            client.expect_blob("team/app", &digest, &bytes).await;
        }
    }
}

/// What was acknowledged by one replica, every other one tells at once; what was deleted, none does.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_tell_the_same_at_once() {
    let cluster = Cluster::start().await;
    let clients: Vec<Client> = cluster.replicas.iter().map(Berth::client).collect();
    for round in 0..9 {
        let (writer, repository) = (&clients[round % 3], "team/app");
        let manifest = writer.push_image(repository, "latest", &[noise(round as u64, 100)]).await;
        let digest = sha256(manifest.to_string().as_bytes());
        for client in &clients {
            let head = client.head("/v2/team/app/manifests/latest").await.expect(200);
            assert_eq!(head.header("docker-content-digest"), digest);
        }
        let deleter = &clients[(round + 1) % 3];
        deleter.delete(&format!("/v2/team/app/manifests/{digest}")).await.expect(202);
        for client in &clients {
            client.get("/v2/team/app/manifests/latest").await.expect(404);
            client.get(&format!("/v2/team/app/manifests/{digest}")).await.expect(404);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_through_the_balancer() {
    let (cluster, daemon) = (Cluster::start().await, Daemon::start());
    for (name, size) in [("small", 1000), ("large", 18 << 20)] {
        let image = format!("{}/team/{name}:1", cluster.host());
        daemon.import(&image, size);
        daemon.run(&["push", &image]);
        daemon.pull_again(&image);
    }
    cluster.assert_spread();
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_through_the_balancer() {
    let (cluster, podman) = (Cluster::start().await, Tool::new("podman"));
    podman.use_own_storage();
    for (name, size) in [("small", 1000), ("large", 18 << 20)] {
        let image = format!("{}/team/{name}:1", cluster.host());
        podman.tar("layer.tar", size as u64, size);
        podman.run(&["import", "layer.tar", &image]);
        let id = podman.run(&["image", "inspect", "--format", "{{.Id}}", &image]);
        podman.run(&["push", "--tls-verify=false", &image]);
        podman.run(&["rmi", "--force", &image]);
        podman.run(&["pull", "--tls-verify=false", &image]);
        assert_eq!(podman.run(&["image", "inspect", "--format", "{{.Id}}", &image]), id);
    }
    cluster.assert_spread();
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_and_skopeo_through_the_balancer() {
    let (cluster, crane, skopeo) = (Cluster::start().await, Tool::new("crane"), Tool::new("skopeo"));
    let image = format!("{}/team/app:1", cluster.host());
    crane.tar("small.tar", 1, 1000);
    crane.tar("large.tar", 2, 18 << 20);
    crane.run(&["append", "-f", "small.tar", "-f", "large.tar", "-t", &image]);
    crane.run(&["validate", "--remote", &image]);
    crane.run(&["pull", &image, "pulled.tar"]);
    crane.run(&["push", "pulled.tar", &format!("{}/team/again:1", cluster.host())]);
    crane.run(&["validate", "--remote", &format!("{}/team/again:1", cluster.host())]);
    let copy = |from: &str, to: &str| {
        let plain = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        skopeo.run(&[&["--insecure-policy", "copy"], &plain[..], &[from, to]].concat());
    };
    copy(&format!("docker://{image}"), "oci:layout:app");
    copy("oci:layout:app", &format!("docker://{}/copied/app:1", cluster.host()));
    crane.run(&["validate", "--remote", &format!("{}/copied/app:1", cluster.host())]);
    cluster.assert_spread();
}

/// Replica after replica is told to end and started again, as an update does it, and no client is refused
/// anything meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_is_not_noticed() {
    let mut cluster = Cluster::start().await;
    let (client, stop) = (cluster.client(), Arc::new(AtomicBool::new(false)));
    let pushing = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut images = 0_u64;
            while !stop.load(Ordering::SeqCst) {
                let layer = noise(images, 1000);
                client.push_image("team/app", &format!("v{images}"), std::slice::from_ref(&layer)).await;
                client.expect_blob("team/app", &sha256(&layer), &layer).await;
                images += 1;
            }
            images
        }
    });
    for replica in &mut cluster.replicas {
        let began = std::time::Instant::now();
        assert!(replica.terminate().success());
        let ended = began.elapsed();
        replica.restart();
        println!("ended after {ended:?}, was back after {:?}", began.elapsed());
        // Until the balancer gives it requests again.
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let images = pushing.await.unwrap();
    println!("{images} images were pushed and pulled");
    assert!(images > 3);
}
