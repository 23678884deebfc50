//! A node's agent and proxy, run as processes in the node's network namespace.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::{Method, StatusCode};
use netns::NetNs;

use super::cni::{Runtime, conflist};
use super::layout::{Layout, program};
use super::report::NodeReport;
use crate::admin_client::request;

/// Timeout for an agent and a proxy to become ready.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// A node with its running processes.
pub(crate) struct RunningNode {
    pub(crate) name: String,
    pub(crate) netns: NetNs,
    pub(crate) runtime: Runtime,
    layout: Layout,
    mesh_file: PathBuf,
    agent: Child,
    proxy: Child,
}

impl RunningNode {
    /// Starts agent and proxy, and waits until the proxy has received the agent's snapshot.
    pub(crate) fn start(
        layout: &Layout,
        name: &str,
        netns: NetNs,
        mesh_file: &Path,
    ) -> anyhow::Result<Self> {
        let folder = layout.node(name);
        let conf_dir = folder.join("net.d");
        fs::create_dir_all(&conf_dir)?;
        let conflist = conflist(&folder.join("agent.sock"));
        let conflist_file = conf_dir.join("10-underpass-sandbox.conflist");
        fs::write(conflist_file, serde_json::to_vec_pretty(&conflist)?)?;
        let mut node = Self {
            name: name.to_owned(),
            agent: start_agent(layout, name, &netns, mesh_file)?,
            proxy: start_proxy(layout, name, &netns, mesh_file)?,
            netns,
            runtime: Runtime {
                bin_dir: layout.bin(),
                conflist,
            },
            layout: layout.clone(),
            mesh_file: mesh_file.to_path_buf(),
        };
        node.wait_until_ready()?;
        Ok(node)
    }

    /// Restarts processes that have exited; returns whether there were any.
    pub(crate) fn repair(&mut self) -> anyhow::Result<bool> {
        let mut repaired = false;
        if self.agent.try_wait()?.is_some() {
            self.agent = start_agent(&self.layout, &self.name, &self.netns, &self.mesh_file)?;
            repaired = true;
        }
        if self.proxy.try_wait()?.is_some() {
            self.proxy = start_proxy(&self.layout, &self.name, &self.netns, &self.mesh_file)?;
            repaired = true;
        }
        if repaired {
            self.wait_until_ready()?;
        }
        Ok(repaired)
    }

    pub(crate) fn report(&self) -> NodeReport {
        let folder = self.layout.node(&self.name);
        NodeReport {
            name: self.name.clone(),
            netns: self.layout.netns(&self.name),
            cni_bin_dir: self.layout.bin(),
            cni_conf_dir: folder.join("net.d"),
            agent_pid: self.agent.id(),
            proxy_pid: self.proxy.id(),
            agent_socket: folder.join("agent.sock"),
            proxy_admin: format!("http://{}", crate::proxy::ADMIN),
            agent_log: folder.join("agent.log"),
            proxy_log: folder.join("proxy.log"),
        }
    }

    /// Kills both processes.
    pub(crate) fn stop(&mut self) {
        for child in [&mut self.proxy, &mut self.agent] {
            let _ = child.kill(); // fails if it has exited already
            let _ = child.wait();
        }
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            for (child, name) in [(&mut self.agent, "agent"), (&mut self.proxy, "proxy")] {
                if let Some(status) = child.try_wait()? {
                    let (node, folder) = (&self.name, self.layout.node(&self.name));
                    let reason = last_line(&folder.join(format!("{name}.log")));
                    bail!("the {name} of {node} exited with {status}: {reason}");
                }
            }
            if self.netns.run(is_ready)? {
                return Ok(());
            }
            if Instant::now() > deadline {
                let (node, limit) = (&self.name, START_DEADLINE.as_secs());
                bail!("agent and proxy of {node} are not ready after {limit} s");
            }
            sleep(Duration::from_millis(5));
        }
    }
}

/// Whether the agent in this network namespace reports that a proxy has received its snapshot.
fn is_ready() -> bool {
    request(Method::GET, agent_status::DEFAULT_ADMIN, "/readyz")
        .is_ok_and(|response| response.status == StatusCode::OK)
}

fn start_agent(
    layout: &Layout,
    node: &str,
    netns: &NetNs,
    mesh_file: &Path,
) -> anyhow::Result<Child> {
    let (folder, mut command) = (layout.node(node), Command::new(program("underpass-agent")?));
    command.args(["--node", node]);
    command.arg("--mesh-file").arg(mesh_file);
    command.arg("--agent-socket").arg(folder.join("agent.sock"));
    command.arg("--zds-socket").arg(folder.join("zds.sock"));
    command.arg("--state-dir").arg(folder.join("state"));
    spawn(command, netns, &folder.join("agent.log"))
}

fn start_proxy(
    layout: &Layout,
    node: &str,
    netns: &NetNs,
    mesh_file: &Path,
) -> anyhow::Result<Child> {
    let (folder, mut command) = (layout.node(node), Command::new(program("underpass-proxy")?));
    command.args(["--node", node]);
    command.arg("--mesh-file").arg(mesh_file);
    command.arg("--zds-socket").arg(folder.join("zds.sock"));
    command.arg("--ca-dir").arg(layout.ca());
    spawn(command, netns, &folder.join("proxy.log"))
}

fn spawn(mut command: Command, netns: &NetNs, log: &Path) -> anyhow::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    command.stdin(Stdio::null());
    command.stdout(log.try_clone()?).stderr(log);
    netns::process::in_netns(&mut command, netns)?;
    netns::process::unblock_signals(&mut command);
    let program = command.get_program().to_owned();
    let started = netns::process::die_with_parent(&mut command).spawn();
    started.with_context(|| format!("cannot start {}", program.display()))
}

/// Creates the folder of CNI plugins.
pub(crate) fn install_plugins(layout: &Layout) -> anyhow::Result<()> {
    fs::create_dir_all(layout.bin())?;
    let bin = layout.bin();
    symlink(program("underpass-cni")?, bin.join("underpass-cni"))?;
    symlink(std::env::current_exe()?, bin.join(super::NET_PLUGIN))?;
    Ok(())
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().last().unwrap_or("the log is empty").to_owned()
}
