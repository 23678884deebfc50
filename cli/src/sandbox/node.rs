//! A node's agent and proxy: real processes in the node's network namespace.

use std::fs::{self, File, OpenOptions};
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
use crate::ask::ask;

/// How long an agent or a proxy may take to be there.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// A node with its processes.
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
    /// Starts both, and waits until the proxy has the agent's snapshot.
    pub(crate) fn start(layout: &Layout, name: &str, netns: NetNs, mesh_file: &Path) -> anyhow::Result<Self> {
        let folder = layout.node(name);
        let conf_dir = folder.join("net.d");
        fs::create_dir_all(&conf_dir)?;
        let conflist = conflist(&folder.join("agent.sock"));
        fs::write(conf_dir.join("10-underpass-sandbox.conflist"), serde_json::to_vec_pretty(&conflist)?)?;
        let (agent, proxy) = (agent(&folder, name, mesh_file), proxy(layout, &folder, name, mesh_file));
        let agent = spawn(agent?, &netns, &folder.join("agent.log"))?;
        let proxy = spawn(proxy?, &netns, &folder.join("proxy.log"))?;
        let runtime = Runtime { bin_dir: layout.bin(), conflist };
        let (layout, mesh_file) = (layout.clone(), mesh_file.to_path_buf());
        let mut node = Self { name: name.to_owned(), netns, runtime, layout, mesh_file, agent, proxy };
        node.wait_until_ready()?;
        Ok(node)
    }

    /// Starts again what has ended; returns whether anything had.
    pub(crate) fn repair(&mut self) -> anyhow::Result<bool> {
        let folder = self.layout.node(&self.name);
        let mut repaired = false;
        if self.agent.try_wait()?.is_some() {
            self.agent = spawn(agent(&folder, &self.name, &self.mesh_file)?, &self.netns, &folder.join("agent.log"))?;
            repaired = true;
        }
        if self.proxy.try_wait()?.is_some() {
            let command = proxy(&self.layout, &folder, &self.name, &self.mesh_file)?;
            self.proxy = spawn(command, &self.netns, &folder.join("proxy.log"))?;
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
            proxy_admin: "http://127.0.0.1:15000".to_owned(),
            agent_log: folder.join("agent.log"),
            proxy_log: folder.join("proxy.log"),
        }
    }

    /// Ends both processes.
    pub(crate) fn stop(&mut self) {
        for child in [&mut self.proxy, &mut self.agent] {
            let _ = child.kill(); // it has ended already
            let _ = child.wait();
        }
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            for (child, name) in [(&mut self.agent, "agent"), (&mut self.proxy, "proxy")] {
                if let Some(status) = child.try_wait()? {
                    let log = self.layout.node(&self.name).join(format!("{name}.log"));
                    bail!("the {name} of {} ended with {status}: {}", self.name, last_line(&log));
                }
            }
            if self.netns.run(is_ready)? {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("agent and proxy of {} are not ready after {} s", self.name, START_DEADLINE.as_secs());
            }
            sleep(Duration::from_millis(5));
        }
    }
}

/// Whether the agent of this namespace's node says that a proxy has taken its snapshot.
fn is_ready() -> bool {
    ask(Method::GET, agent_status::DEFAULT_ADMIN, "/readyz").is_ok_and(|(status, _)| status == StatusCode::OK)
}

fn agent(folder: &Path, node: &str, mesh_file: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(program("underpass-agent")?);
    command.arg("--node").arg(node).arg("--mesh-file").arg(mesh_file);
    command.arg("--agent-socket").arg(folder.join("agent.sock")).arg("--zds-socket").arg(folder.join("zds.sock"));
    command.arg("--state-dir").arg(folder.join("state"));
    Ok(command)
}

fn proxy(layout: &Layout, folder: &Path, node: &str, mesh_file: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(program("underpass-proxy")?);
    command.arg("--node").arg(node).arg("--mesh-file").arg(mesh_file).arg("--zds-socket").arg(folder.join("zds.sock"));
    command.arg("--ca-dir").arg(layout.ca());
    Ok(command)
}

fn spawn(mut command: Command, netns: &NetNs, log: &Path) -> anyhow::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    netns::process::in_netns(&mut command, netns)?;
    netns::process::unblock_signals(&mut command);
    let program = command.get_program().to_owned();
    netns::process::die_with_parent(&mut command).spawn().with_context(|| format!("start {}", program.display()))
}

/// Makes the folder of CNI plugins.
pub(crate) fn install_plugins(layout: &Layout) -> anyhow::Result<()> {
    fs::create_dir_all(layout.bin())?;
    symlink(program("underpass-cni")?, layout.bin().join("underpass-cni"))?;
    symlink(std::env::current_exe()?, layout.bin().join(super::NET_PLUGIN))?;
    Ok(())
}

fn last_line(log: &Path) -> String {
    let read = |f: &mut File| std::io::read_to_string(f);
    let text = File::open(log).and_then(|mut f| read(&mut f)).unwrap_or_default();
    text.lines().last().unwrap_or("its log is empty").to_owned()
}
