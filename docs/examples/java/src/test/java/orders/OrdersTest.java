package orders;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import java.util.concurrent.TimeUnit;
import java.util.regex.Pattern;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

class OrdersTest {
    private static final Pattern ADDRESS = Pattern.compile("\"address\": ?\"([^\"]+)\"");
    private static Process etcd;
    private static Client client;

    /** Runs an etcd on a port of its own choosing. */
    @BeforeAll
    static void start() throws Exception {
        var any = "http://127.0.0.1:0";
        etcd = new ProcessBuilder(
                "mvccstore-etcd", "--memory", "--log-outputs", "stdout",
                "--listen-client-urls", any, "--advertise-client-urls", any).start();
        var log = etcd.inputReader();
        String address = null;
        for (var line = log.readLine(); !line.contains("ready to serve client requests"); line = log.readLine()) {
            var found = ADDRESS.matcher(line);
            if (found.find()) {
                address = found.group(1);
            }
        }
        client = Client.builder().endpoints("http://" + address).build();
    }

    @AfterAll
    static void stop() throws Exception {
        client.close();
        etcd.destroy();
        etcd.waitFor();
    }

    private static ByteSequence bytes(String text) {
        return ByteSequence.from(text, UTF_8);
    }

    @Test
    void anOrderIsFound() throws Exception {
        var key = bytes("anOrderIsFound/alice"); // one server for all tests, and keys of its own for each
        client.getKVClient().put(key, bytes("tea")).get(10, TimeUnit.SECONDS);
        var found = client.getKVClient().get(key).get(10, TimeUnit.SECONDS).getKvs();
        assertEquals(1, found.size());
        assertEquals(bytes("tea"), found.get(0).getValue());
    }
}
