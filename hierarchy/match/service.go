package match

// services are names of ports, as /etc/services has them, and a few that people use
// instead. They are built in, so that a policy means the same on every machine. A name
// says nothing of the protocol.
var services = []struct {
	name string
	port uint16
}{
	{"ftp-data", 20}, {"ftp", 21}, {"ssh", 22}, {"telnet", 23}, {"smtp", 25}, {"domain", 53}, {"dns", 53},
	{"bootps", 67}, {"bootpc", 68}, {"tftp", 69}, {"http", 80}, {"kerberos", 88}, {"pop3", 110},
	{"sunrpc", 111}, {"ntp", 123}, {"netbios-ns", 137}, {"netbios-dgm", 138}, {"netbios-ssn", 139},
	{"imap", 143}, {"imap2", 143}, {"snmp", 161}, {"snmp-trap", 162}, {"bgp", 179}, {"irc", 194}, {"ldap", 389},
	{"https", 443}, {"microsoft-ds", 445}, {"smb", 445}, {"submissions", 465}, {"isakmp", 500}, {"syslog", 514},
	{"submission", 587}, {"ipp", 631}, {"ldaps", 636}, {"rsync", 873}, {"domain-s", 853}, {"imaps", 993},
	{"pop3s", 995}, {"openvpn", 1194}, {"ms-sql-s", 1433}, {"l2f", 1701}, {"radius", 1812}, {"mqtt", 1883},
	{"nfs", 2049}, {"mysql", 3306}, {"ms-wbt-server", 3389}, {"rdp", 3389}, {"stun", 3478}, {"turn", 3478},
	{"svn", 3690}, {"ipsec-nat-t", 4500}, {"sip", 5060}, {"sips", 5061}, {"xmpp-client", 5222},
	{"xmpp-server", 5269}, {"mdns", 5353}, {"postgresql", 5432}, {"amqp", 5672}, {"vnc", 5900}, {"x11", 6000},
	{"redis", 6379}, {"ircs-u", 6697}, {"http-alt", 8080}, {"git", 9418}, {"wireguard", 51820},
}

// service is the port of a name, 0 for none.
func service(name string) uint16 {
	for _, s := range services {
		if s.name == name {
			return s.port
		}
	}
	return 0
}

// Service is the usual name of a port, empty where it has none here.
func Service(port uint16) string {
	for _, s := range services {
		if s.port == port {
			return s.name
		}
	}
	return ""
}
