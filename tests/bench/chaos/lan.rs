//! A network of its own: machines as network namespaces on one bridge, any of which can lose its cable.

use std::process::Command;

use anyhow::ensure;

/// Removed when dropped, with whatever still runs in it cut off.
pub(super) struct Lan {
    tag: String,
    subnet: String,
    machines: Vec<String>,
}

impl Lan {
    /// Needs root.
    pub(super) fn new(machines: &[String]) -> anyhow::Result<Self> {
        let number = std::process::id();
        let tag = format!("dx{:x}", number % 0xfff);
        let subnet = format!("10.{}.{}", 200 + number / 250 % 50, number % 250);
        let lan = Self { tag, subnet, machines: machines.to_vec() };
        let bridge = lan.bridge();
        ip(&["link", "add", &bridge, "type", "bridge", "forward_delay", "0"])?;
        ip(&["address", "add", &format!("{}.254/24", lan.subnet), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for machine in machines {
            let (space, cable) = (lan.space(machine), lan.cable(machine));
            ip(&["netns", "add", &space])?;
            ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &space])?;
            ip(&["link", "set", &cable, "master", &bridge, "up"])?;
            let address = format!("{}/24", lan.address(machine));
            ip(&["-n", &space, "address", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
            ip(&["-n", &space, "link", "set", "eth0", "up"])?;
        }
        Ok(lan)
    }

    /// The machine's address.
    pub(super) fn address(&self, machine: &str) -> String {
        format!("{}.{}", self.subnet, self.place(machine) + 1)
    }

    /// What runs a program on that machine.
    pub(super) fn on(&self, machine: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(machine), program]);
        command
    }

    /// Plugs a machine's cable in, or pulls it: nothing is refused then, everything is silent.
    pub(super) fn plug(&self, machine: &str, is_in: bool) -> anyhow::Result<()> {
        ip(&["link", "set", &self.cable(machine), if is_in { "up" } else { "down" }])
    }

    fn place(&self, machine: &str) -> usize {
        self.machines.iter().position(|known| known == machine).unwrap_or_default()
    }

    fn bridge(&self) -> String {
        format!("{}br", self.tag)
    }

    fn space(&self, machine: &str) -> String {
        format!("{}-{machine}", self.tag)
    }

    fn cable(&self, machine: &str) -> String {
        format!("{}v{}", self.tag, self.place(machine))
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for machine in &self.machines {
            // Fails for what was not made.
            let _ = ip(&["netns", "delete", &self.space(machine)]);
        }
        let _ = ip(&["link", "delete", &self.bridge()]);
    }
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words).output()?;
    ensure!(output.status.success(), "ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}
