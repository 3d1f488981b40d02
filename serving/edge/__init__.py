"""What reaches beyond this machine's terminal: a bundle in a browser, and on devices over ssh.

`demo` serves the page. `deploy` rolls out without an agent, `state` reads back what is there;
`on_device` and `folder` are what the device's own Python runs meanwhile.
"""
